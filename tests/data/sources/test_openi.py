import json
import tarfile

import pytest

from medunifier.shared.errors import UserError

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON"/><AbstractText Label="INDICATION">Pain</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation><MeSH>{headings}</MeSH>{images}</eCitation>"""


def report(root, number, images, headings=("normal",), findings="Clear XXXX.", impression="Normal chest."):
    path = root / "reports" / "ecgen-radiology" / f"{number}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        XML.format(
            number=number,
            findings=findings,
            impression=impression,
            headings="".join(f"<major>{heading}</major>" for heading in headings),
            images="".join(f'<parentImage id="{image}"><figureId>F1</figureId></parentImage>' for image in images),
        )
    )


def test_reports_images_and_headings(tmp_path, image_file, read, ingested):
    report(tmp_path, 2, ["CXR2_IM-0652-1001"], ("Cardiomegaly/mild", "Cardiac Shadow/enlarged", "Hernia, Hiatal"))
    report(
        tmp_path, 10, ["CXR10_IM-0002-1001", "CXR10_IM-0002-2001"], ("Thickening/pleura/apex", "Opacity/lung/base")
    )
    report(tmp_path, 3, ["CXR3_IM-1384-1001"], ("No Indexing",), findings="", impression="No effusion.")
    report(tmp_path, 4, [])
    (tmp_path / "reports/ecgen-radiology/5.xml").write_text("<eCitation>")
    for name in ("CXR2_IM-0652-1001", "CXR10_IM-0002-1001", "CXR10_IM-0002-2001", "CXR3_IM-1384-1001"):
        image_file(tmp_path / "png" / f"{name}.png")
    archive = read("openi", tmp_path)
    two, three, ten = archive.records
    assert [record.study_id for record in archive.records] == ["CXR2", "CXR3", "CXR10"]
    assert two.labels == {"Cardiomegaly": 1} and ten.labels == {"Lung Opacity": 1, "Pleural Other": 1}
    assert three.labels is None and (three.findings, three.impression) == ("", "No effusion.")
    assert len(ten.views) == 2 and two.findings == "Clear XXXX."
    reasons = sorted(problem.reason for problem in archive.problems)
    assert reasons == ["report is not readable as XML", "report without an image"]
    manifest, infos = ingested("openi", tmp_path)
    assert manifest["counts"]["kept_studies"] == 3 and manifest["counts"]["rejected_images"] == 0
    # Not indexed, so the labels are extracted from the report.
    assert {"Pleural Effusion": 0, "No Finding": 1} in [info["labels"] for info in infos]


def test_a_tree_without_reports_is_refused(tmp_path, read):
    with pytest.raises(UserError, match=r"NLMCXR_reports\.tgz"):
        read("openi", tmp_path)


def test_the_original_reports(shared_data, tmp_path, read):
    """The 1,979 published odd-numbered reports; expected counts are from grep and another parser."""
    with tarfile.open(shared_data("openi/ecgen-radiology-odd.tgz")) as archive:
        # Python before 3.11.4 has no filter.
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    found = read("openi", tmp_path)
    without_image = sum(problem.reason == "report without an image" for problem in found.problems)
    assert len(found.records) + without_image == 1979
    assert sum(len(record.views) for record in found.records) == 3709
    first = found.records[0]
    assert (
        first.study_id == "CXR1" and first.impression == "Normal chest x-XXXX." and first.labels == {"No Finding": 1}
    )
    assert [view.path.name for view in first.views] == ["CXR1_1_IM-0001-3001.png", "CXR1_1_IM-0001-4001.png"]


def annotation(root, image_file, key="    "):
    def entry(study, split, images=2, **more):
        paths = [f"{study}/{number}.png" for number in range(images)]
        for path in paths:
            image_file(root / "images" / path)
        return {"id": study, "report": "Heart size is normal .", "image_path": paths, "split": split} | more

    content = {
        "train": [entry("CXR2384_IM-0942", "train"), entry("CXR1_IM-1", "train", images=0), {"report": "lost"}],
        "val": [entry("CXR7_IM-2263", "val", report=float("nan"))],
        key: [entry("CXR9_IM-2407", "test")],
    }
    (root / "annotation.json").write_text(json.dumps(content))


def test_r2gen_uses_the_split_of_the_entries(tmp_path, image_file, read, ingested):
    annotation(tmp_path, image_file)
    archive = read("r2gen", tmp_path)
    first, second, third = archive.records
    assert [record.split for record in archive.records] == ["train", "validate", "test"]
    assert first.patient_id == "CXR2384" and first.findings == "Heart size is normal ." and second.findings == ""
    assert len(third.views) == 2 and third.views[0].path.is_file()
    assert [problem.reason for problem in archive.problems] == ["entry without image_path", "entry without id"]
    manifest, _ = ingested("r2gen", tmp_path)
    assert manifest["counts"]["rejected_images"] == 0 and manifest["counts"]["kept_studies"] == 3


def test_r2gen_patients_in_the_mimic_version(tmp_path, read):
    entry = {"id": "02aa804e", "study_id": 50414267, "subject_id": 10000032, "report": "Clear .", "split": "val"}
    (tmp_path / "annotation.json").write_text(json.dumps({"val": [entry | {"image_path": ["p10/a.jpg"]}]}))
    (record,) = read("r2gen", tmp_path).records
    assert record.patient_id == "10000032" and record.views[0].path == tmp_path / "images/p10/a.jpg"


def test_r2gen_refuses_other_json(tmp_path, read):
    with pytest.raises(UserError, match=r"no annotation\.json"):
        read("r2gen", tmp_path)
    for text in ("[1, 2]", "{", '{"train": 3}'):
        (tmp_path / "annotation.json").write_text(text)
        with pytest.raises(UserError, match=r"annotation\.json"):
            read("r2gen", tmp_path)
