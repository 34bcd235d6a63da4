"""Sentences for redaction: ordinary ones, which must not change, and planted identifiers, between « and »."""

ORDINARY = """
The left rib 6 may be fractured.
Correlate with MR Angiography.
Ribs 5 and 6 may be fractured.
Fracture of rib 7. May represent an old injury.
RIB 6 MAY BE FRACTURED.
The 6 May be artifact.
Opacities march along the fissure.
Two of 3 views may be rotated.
The nodule in segment 6 may represent a granuloma.
Nodule of 3.5 x 2.1 cm in the right upper lobe.
Heart size is 15.2 cm; ratio 0.55.
T11/12 disc space is narrowed, grade 2/3.
ET tube tip 4.2 cm above the carina.
Rib 5-7 fractures on the right.
Ribs 8-9-10 are fractured.
Ribs 10-11-12 show healed fractures.
PICC in the mid SVC at the level of T4.
No acute disease in 2 of 3 views.
Cardiothoracic ratio is 1:2.
CT or MR Imaging is recommended.
MR Venography may be of help.
MR BRAIN was reported separately.
MR Spine is advised.
Consider Cardiac MR or CT Angiography.
DR Chest, two views.
DR System images are of good quality.
History of MS with contractures.
MS Plaques are not assessed on this study.
MR Cholangiopancreatography was normal.
MR Enterography is scheduled.
The device is MR Conditional.
The pacemaker is MR Compatible.
Dual lead PM with 2 PM leads in place.
Please DO NOT advance the tube.
WE DO NOT SEE A PNEUMOTHORAX.
No Pneumothorax or Pleural Effusion.
THE LUNGS ARE CLEAR. NO EFFUSION.
Lungs Are Clear.
Right Lower Lobe Consolidation.
Left Pleural Effusion, Small.
Nodules measure 2.5-10 mm.
Nodules range from 3-5-8 mm.
Effusion of 500-1000 mL was drained.
1000 mL of fluid were removed.
Drained 1500 cc of fluid.
The mass measures 12 x 10 x 8 mm.
The mass measures 1.2 x 1.0 x 0.8 cm.
Density of 120-130 HU.
L4/5 disc space is narrowed.
Level of C5/6 is unremarkable.
Atelectasis in 1/3 of the left lung.
The effusion occupies 2/3 of the hemithorax.
Effusion extends to 2/3 of the lung.
Grade 3/6 murmur is known.
Pulse oximetry 88% on room air.
Support devices: ET tube, NG tube, PICC.
Tip of the tube is 3 cm above the carina.
The tip of the ETT lies at the level of T5 3 cm above the carina.
LEVEL OF T5 3CM ABOVE THE CARINA.
Swan-Ganz catheter in the right pulmonary artery.
Dobhoff tube passes below the diaphragm.
Port-A-Cath on the right.
Hickman line in the right atrium.
Sternotomy wires and CABG clips.
St. Jude valve in place.
Kerley B lines are present.
Hampton hump is not seen.
Westermark sign is absent.
Chilaiditi sign on the right.
Pancoast tumor cannot be excluded.
Ghon complex in the right lung.
Hodgkin lymphoma, treated.
Kaposi sarcoma is possible.
Bochdalek hernia on the left.
Morgagni hernia on the right.
Scheuermann disease of the thoracic spine.
Harrington rods are intact.
Hill-Sachs deformity of the left humerus.
Looser zones are absent.
Schmorl nodes at several levels.
Hepatitis C. No pleural effusion.
Vitamin D. Lungs are clear.
Type A. The aorta is dilated.
Segment B. There is no nodule.
Influenza A. Lungs show patchy opacities.
The A.P. view is rotated.
P.A. and lateral views of the chest.
PA/lat views of the chest.
AP/lat
PA and LAT.
IV contrast was not given.
Confirmed by CT.
Reviewed with CT.
Read with US.
Findings verified by CT.
Position verified by US.
Discussed with the team.
Discussed with the ED at once.
Results were called to the ICU.
Findings reported to the Emergency Department.
Findings were communicated to the referring physician.
Reported by the resident.
Read by the radiologist.
Compared to the Outside Hospital study.
Transferred from an outside hospital.
PATIENT IN HOSPITAL FOR PNEUMONIA.
The patient is in hospital.
Follow-up in the clinic is advised.
Return to Clinic in 3 months.
Comparison is made to the prior study.
Follow-up in 6-8 weeks.
Repeat in 3 months.
Stable since the last study.
In case 2 views are needed, repeat.
In case of fever, repeat.
Exam limited by motion.
Exam 2 of 3.
Study 1 of 2.
Image 2:34 shows the nodule best.
Series 3:45 is degraded.
Type II diabetes.
Stage IIIA lung cancer.
COVID-19 pneumonia is possible.
H1N1 influenza is known.
SARS-CoV-2 was detected.
CO2 is retained.
PaO2 is 60.
Vertebral bodies T3-T12 are intact.
Anterior ribs 1-6 are visible.
Ten posterior ribs are visible.
The 4th rib is fractured.
Fracture of the 9th rib on the left.
Left 3rd, 4th and 5th ribs are fractured.
3rd rib may be fractured.
The 2nd and 3rd may show callus.
The patient is rotated to the left.
Patient Rotated.
Patient: Rotated to the left.
Patient: intubated.
Technologist note: patient could not stand.
Views: AP, lateral.
Technique: portable.
Name of the device is unknown.
Line tip in the SVC.
Lines: none.
Phone 1 of 2 shadows overlies the chest.
Cell phone projects over the left chest.
A pager overlies the abdomen.
Fax copies are not diagnostic.
The extension of 12 cm is unchanged.
Extension to the pleura.
Extension 1.5 cm below the diaphragm.
The mass extends 4 cm.
X 3 views.
Nipple marker x2.
Aorta is 4.5 cm, ectatic.
Aortic knob calcification.
Right hemidiaphragm is elevated by 2-3 cm.
Tracheal deviation of 1-2 cm.
EF of 35-40%.
Score of 4/10.
BI-RADS 2.
Lung-RADS 4A.
Fleischner criteria apply.
Mild cardiomegaly.
Moderate edema.
Pulmonary edema has decreased.
No free air under the diaphragm.
Old granulomatous disease.
Cardiac silhouette is at the upper limit of normal.
Bibasilar atelectasis, right greater than left.
Interval removal of the chest tube.
Interval placement of a right IJ line.
A right IJ line ends in the SVC.
Left subclavian line, tip in the RA.
Small left apical pneumothorax.
The pneumothorax measures 2.5 cm at the apex.
Blunting of the left costophrenic angle.
Kyphosis. Osteopenia.
Degenerative changes of the spine.
Bilateral hilar lymphadenopathy.
Emphysema and fibrosis.
Bronchiectasis in the lower lobes.
Tree-in-bud nodules.
Miliary pattern.
Cavity of 3 cm in the right upper lobe.
Sarcoidosis, stage 2.
Silicosis, category 2/2.
ILO category 1/1.
Profusion 1/0, p/p.
Compression fracture of L1.
Vertebroplasty at T12 and L1.
Spinal stimulator leads at T8.
Gastric bubble on the left.
Dextrocardia.
Right aortic arch.
Azygos fissure.
Companion shadow of the clavicle.
Skin fold on the right.
EKG leads overlie the chest.
Correlate clinically.
Clinical correlation is advised.
May represent pneumonia.
May be due to rotation.
June is not mentioned here, and no date is.
As in March, the effusion is small.
A second dec reading was not done.
Augmented lung volumes.
Septal lines 2 to 3 mm thick.
Marked hyperinflation.
Dr. ___ was called.
Compared to ___, the effusion has grown.
Discussed with ___ at ___ on ___.
XXXX lungs are clear.
""".strip().splitlines()

PLANTED = """
Discussed with Dr. «Smith» by phone.
Discussed with Dr. «Jane O'Hara».
DR «SMITH» WAS INFORMED. NO EFFUSION.
PER DR «SMITH» THERE IS NO EFFUSION.
Mr. «Brown» was rotated.
Mrs. «Maria Lopez» could not stand.
Ms «Taylor» has a PICC.
Miss «Jones» was supine.
Prof. «Müller» agreed.
Professor «von Braun» agreed.
Doctor «Nguyen» was paged.
Nurse «Kelly» was told.
Drs. «Adams» reviewed it.
Read by «John Q. Public», M.D.
«Anna Berg», MD
«Peter Lang», D.O.
«Paula Stone», R.N. was told.
«Lena Fox», PhD
«Omar Haddad», NP was told.
Electronically signed by: «Walter Hayes»
Dictated by «J. Carter»
Dictated by: «Carter»
Reported by «Susan Miles»
Transcribed by: «Tom Reed»
Reviewed by «K. Ito»
Radiologist: «Helen Park»
Patient name: «Ruth Allen»
Name: «Allen, Ruth»
Patient: «Ruth Allen»
Findings discussed with «Robert King» on the ward.
Results were called to «Alan Price».
Compared to «3/14/2019».
Compared to «03/14/19».
Compared to «14.03.2019».
Compared to «14.3.19».
Compared to «2019-03-14».
Compared to «2019/03/14».
Compared to «2019.03.14».
Compared to «14-03-2019».
Compared to «March 14, 2019».
Compared to «Mar. 14 2019».
Compared to «14 March 2019».
Compared to «14th of March 2019».
Compared to the «14th of March».
Compared to «14-Mar-2019».
Compared to «14MAR2019».
Compared to «14 may 2018».
Compared to «6 May 2018».
Film of «May 6».
Film of «March 14th».
CT of «February 2018».
CT of «02/2018».
CT of «Feb '18».
Seen on «3/14» as well.
Since «12/5» the effusion has grown.
Taken on «20190314».
Compared to «2 Sept» and «Oct 3».
Compared to «03 14 2019».
Discussed at «14:35».
Discussed at «2:35 p.m.»
Discussed at «3 PM».
Discussed at «0835 hrs».
Call «(617) 555-0123».
Call «617-555-0123».
Call «617.555.0123».
Call «+1 617 555 0123».
Call «+49 30 1234567».
Call «020 7946 0958».
Call «555-0123».
Pager «31415».
Phone: «5-1234».
Tel. «0301234567».
Call ext. «4711».
Call x«4711».
MRN: «12-34567»
MRN «1234567»
MRN# «A12345»
Medical record number «998877»
Patient ID: «P-10023»
Hospital no. «H12345»
NHS number: «943 476 5919»
SSN «123-45-6789»
Accession «AB9917»
Accession number: «CR-19-004521»
Accession: «A19-12345»
Acc# «778899»
Exam «20394817»
Study «1.2.840.113619.2.55.3»
Mail «john.smith@radiology.example.org».
Mail «jsmith@hospital.com» at once.
See «https://pacs.example.org/view?id=33».
See «www.stmarys.org/report».
See «pacs.generalhospital.com».
CT of «Springfield General Hospital».
Seen in «St. Mary's Hospital».
Transferred from «Mercy Medical Center».
Followed in the «Mayo Clinic».
SEEN IN «MERCY HOSPITAL».
Followed at the University of «Springfield».
Lives at «12 Oak Street».
Lives at «221B Baker St».
Lives in «Boston, MA 02114».
Lives at «SW1A 1AA».
Send to «PO Box 123».
Dictated by «JS»
Initials: «J.S.»
Reviewed by «A.B.»
Stable. «JBS/kml»
Stable. «RK:ab»
""".strip().splitlines()
