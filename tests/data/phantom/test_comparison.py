"""Change over time: its truth, and reports that state it so that the labeler reads it."""

from collections import Counter
from dataclasses import replace

import numpy as np

from medunifier.data.phantom import Phantom
from medunifier.data.phantom.change import Change, changes
from medunifier.data.phantom.report import write_report
from medunifier.data.phantom.state import FINDINGS, Lesion, slot, study_state
from medunifier.data.reports.labeler import label_report
from medunifier.data.reports.sections import split_sections
from tests.data.phantom.rendering.test_frontal import PLAIN


def visits(seed: int, count: int) -> list:
    """(prior, state, report) of the studies that have a visit before them."""
    found = []
    for index in range(count):
        place = slot(seed, index)
        if place.visit:
            prior, state = (
                study_state(seed, place.patient, visit, FINDINGS) for visit in (place.visit - 1, place.visit)
            )
            rng = np.random.default_rng((seed, index))
            found.append((prior, state, write_report(state, rng, prior=prior, history=True)))
    return found


def test_courses() -> None:
    left, right = Lesion("left", 1), Lesion("right", 1)
    wet = replace(PLAIN, effusions=(left,))
    assert changes(PLAIN, wet)["effusions"] == Change("new", ("left",))
    assert changes(wet, PLAIN)["effusions"] == Change(None, (), ("left",))
    assert changes(wet, wet)["effusions"] == Change("unchanged")
    assert changes(wet, replace(PLAIN, effusions=(Lesion("left", 2),)))["effusions"] == Change("increased")
    assert changes(wet, replace(PLAIN, effusions=(left, right)))["effusions"] == Change("partly new", ("right",))
    moved = changes(
        replace(PLAIN, nodule=Lesion("left", 0, "upper")), replace(PLAIN, nodule=Lesion("left", 0, "mid"))
    )
    assert moved["nodule"] == Change("new", (("left", "mid"),), (("left", "upper"),))
    assert changes(replace(PLAIN, heart=3), replace(PLAIN, heart=2))["heart"] == Change("decreased")


def test_the_labeler_reads_every_comparison_as_written() -> None:
    for _, _, report in visits(4, 1500):
        assert label_report(report.text) == report.labels, report.text


def test_reports_state_new_unchanged_increased_and_resolved_findings() -> None:
    told: Counter[str] = Counter()
    for prior, state, report in visits(7, 2500):
        text = " ".join(report.text.split()).lower()
        course = changes(prior, state)["nodule"]
        if course.course and report.labels["Lung Lesion"] == 1:
            assert f"{state.nodule.side} {state.nodule.zone}" in text
            words = {"new": "new", "unchanged": "unchanged", "increased": "increased", "decreased": "decreased"}
            impression = split_sections(report.text)["impression"].lower()
            assert words[course.course] in impression
            told[course.course] += 1
        if not course.course and course.resolved_at:
            assert report.labels["Lung Lesion"] == 0 and "nodule" in text
            told["resolved"] += 1
        if report.labels.get("Lung Lesion") == -1:
            assert state.nodule.size == 0 and "possible" in text
            told["doubted"] += 1
    assert set(told) == {"new", "unchanged", "increased", "decreased", "resolved", "doubted"}


def test_history_changes_the_reports_of_later_visits_and_no_image() -> None:
    plain, told = Phantom(32, 5), Phantom(32, 5, history=True)
    first = later = 0
    for index in range(40):
        one, other = plain.study(index), told.study(index)
        assert np.array_equal(one.images[0], other.images[0]) and one.state == other.state
        comparison = split_sections(other.report)["comparison"].strip()
        if slot(5, index).visit:
            assert other.prior is not None and comparison == "Chest radiograph ___."
            later += one.report != other.report
        else:
            assert other.prior is None and comparison == "None." and one.labels == other.labels
            first += 1
    assert first and later > 8
