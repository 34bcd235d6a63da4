"""Work is continued with the same settings and refused with others, before anything is written."""

import json

import pytest

from medunifier.shared.errors import UserError
from medunifier.shared.files.settings_record import begin_or_continue, refuse_occupied, refuse_other_settings

SETTINGS = {"model": "a", "temperature": 1.0, "files": ["x", "y"]}


def test_the_record_is_written_first_and_continued_after(tmp_path):
    record = tmp_path / "out" / "unfinished" / "plan.json"
    assert begin_or_continue(record, SETTINGS, tmp_path / "out") is False
    assert json.loads(record.read_text()) == SETTINGS
    (tmp_path / "out" / "shard").touch()
    assert begin_or_continue(record, SETTINGS, tmp_path / "out") is True


def test_other_settings_are_refused_and_the_record_stays(tmp_path):
    record = tmp_path / "plan.json"
    begin_or_continue(record, SETTINGS)
    with pytest.raises(UserError) as refusal:
        begin_or_continue(record, SETTINGS | {"temperature": 0.6, "view": "PA"}, option="--index")
    text = str(refusal.value)
    assert "temperature: 1.0 -> 0.6, view" in text and "model" not in text and "--index" in text
    assert json.loads(record.read_text()) == SETTINGS


def test_texts_of_settings_are_not_printed():
    with pytest.raises(UserError) as refusal:
        refuse_other_settings("out", SETTINGS, SETTINGS | {"files": ["Smith"], "model": "Jones"})
    assert "files" in str(refusal.value) and "Smith" not in str(refusal.value) and "Jones" not in str(refusal.value)


def test_a_place_without_a_record_is_refused(tmp_path):
    with pytest.raises(UserError, match="record"):
        refuse_other_settings(tmp_path, None, SETTINGS)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        begin_or_continue(tmp_path / "plan.json", SETTINGS)
    assert not (tmp_path / "plan.json").exists()


def test_a_folder_with_remnants_of_a_killed_start_is_empty(tmp_path):
    refuse_occupied(tmp_path / "absent")
    (tmp_path / ".partial-1-plan.json").touch()
    refuse_occupied(tmp_path)
    (tmp_path / "unfinished").mkdir()
    refuse_occupied(tmp_path, own="unfinished")
    for place in (tmp_path, tmp_path / ".partial-1-plan.json"):
        with pytest.raises(UserError):
            refuse_occupied(place)
