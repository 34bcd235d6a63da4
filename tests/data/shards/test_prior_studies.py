"""Visit numbers and prior studies: never a later study, never another patient's."""

from hypothesis import given
from hypothesis import strategies as st

from medunifier.data.records import StudyRecord
from medunifier.data.shards.prior_studies import number_visits, prior_study_indices

STUDIES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "1", "2", "3", "4"])), max_size=20)


def records(studies):
    return [StudyRecord(str(number), patient, (), taken=taken) for number, (patient, taken) in enumerate(studies)]


def test_visits_are_numbered_by_time_in_any_source_order():
    days = [("a", "20310405"), ("b", "20310101"), ("a", "20300101"), ("a", ""), ("a", "20310405"), ("a", "20320101")]
    assert [record.visit for record in number_visits(records(days))] == [1, 0, 0, None, 1, 2]


@given(STUDIES)
def test_the_prior_is_the_patients_latest_earlier_study(studies):
    numbered = number_visits(records(studies))
    infos = [{"patient_id": r.patient_id, "visit": r.visit} for r in numbered]
    for number, prior in enumerate(prior_study_indices(infos)):
        patient, taken = studies[number]
        earlier = [t for p, t in studies if p == patient and "" < t < taken]
        if not taken or not earlier:
            assert prior is None
        else:
            assert studies[prior] == (patient, max(earlier))


def test_shards_without_visit_numbers_have_no_prior():
    assert prior_study_indices([{"patient_id": "a"}, {"patient_id": "a"}]) == [None, None]
