"""What the page states: small probabilities, statements and whole reports, the findings and data of the training."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("gradio")

from medunifier.shared.errors import UserError
from medunifier.stage2_unified.app.endpoints import (
    OUTSIDE,
    PROMPT_COLUMNS,
    Endpoints,
    bars_html,
    in_words,
    match_texts,
    small,
    studies_html,
    table,
)
from medunifier.stage2_unified.app.server import training_source
from medunifier.stage2_unified.app.service import (
    EncodedImage,
    ModelService,
    TextMatch,
    is_whole_report,
    stated_findings,
)
from medunifier.stage2_unified.generation.likelihood import LikelihoodReference
from medunifier.stage2_unified.inference.pipeline import MedUnifierPipeline


def test_no_probability_reads_0():
    assert [small(value) for value in (0.0, 0.0009, 0.001, 0.5, 1.0)] == [
        "< 0.001",
        "< 0.001",
        "0.001",
        "0.500",
        "1.000",
    ]
    shown = table(("finding", "match", "similarity"), [["Edema", 0.0, -0.0004], ["Fracture", None, 1.0]])
    assert shown["metadata"]["display_value"] == [["Edema", "< 0.001", "-0.000"], ["Fracture", "", "1.000"]]
    assert shown["data"][0][1] == 0.0, "the exact number stays"


def test_no_score_of_a_text_reads_0():
    for agreement, whole in (((("Edema", True, 0.0), ("Fracture", False, 0.5)), False), ((), False), ((), True)):
        found = TextMatch(0.0, 0.1, 0.0, agreement, whole)
        answer, weaker = match_texts(found)
        assert answer and not re.search(r"(?<![\d.])0(\.0+)?(?![\d.])", answer + weaker), (answer, weaker)
        assert not agreement or ("none of" in answer and "50%" in answer)


def test_a_finding_that_the_model_never_learned_has_no_score(model_folder, tmp_path, monkeypatch):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    service = ModelService(pipeline, tmp_path, learned=("Edema",))
    side = pipeline.tokenizer.image_size
    pixels = np.random.default_rng(0).random((side, side), np.float32)
    image = EncodedImage(pixels, pipeline.encode(pixels[None])[0], "PA")
    for text, scored, untrained in (
        ("Rib fracture.", [], ("Fracture",)),
        ("No fracture. Pulmonary edema.", ["Edema"], ("Fracture",)),
        ("Pulmonary edema.", ["Edema"], ()),
    ):
        found = service.match(image, text)
        assert [name for name, *_ in found.agreement] == scored and found.untrained == untrained, text
        answer, weaker = match_texts(found)
        assert ("not trained on Fracture" in answer) == bool(untrained)
        assert scored or not re.search(r"\d", answer + weaker), (answer, weaker)
    for score in service.findings(image, "fracture, Edema, pacemaker, rib fracture, lung edema"):
        values = {score.sampled_probability, score.preference, score.similarity}
        assert (values == {None}) == (score.name not in ("Edema", "lung edema")), score
    monkeypatch.setattr(service, "read", lambda path, view: image)
    endpoints = Endpoints(service, [])
    bars, prompts = endpoints.bars(endpoints.findings("a.png", "PA", "pacemaker, Edema"))
    refusal = match_texts(service.match(image, "There is a pacemaker."))[0]
    assert "Support Devices" in refusal and refusal in bars["value"], "the same words for both"
    assert bars["value"].count("<progress") == 1 and ["pacemaker", None, None, None] in prompts["data"]
    assert not ModelService(pipeline, tmp_path).untrained("Fracture"), "unknown training data"


def test_a_finding_is_compared_without_its_side_and_size():
    for text in match_texts(TextMatch(0.5, 0.1, None, (("Pleural Effusion", True, 1.0),), False))[0].splitlines():
        assert "agree" not in text or "side" in text.partition("agree")[0], text


def test_a_text_without_a_finding_has_no_score_in_its_answer(model_folder, tmp_path):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    service = ModelService(pipeline, tmp_path)
    image = EncodedImage(np.zeros((32, 32)), np.zeros(pipeline.tokenizer.grid, np.int64), "PA")
    for text in ("qwertz asdf", "A fine day. It rains. It snows.", "Lorem"):
        for percentile in (None, 0.5):
            answer, weaker = match_texts(replace(service.match(image, text), percentile=percentile))
            assert "No known finding" in answer and not re.search(r"\d", answer), answer
            assert not weaker, "a cosine could exceed that of a true sentence"


def test_a_normal_text_is_known_and_a_doubtful_one_has_no_score(model_folder, tmp_path):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    service = ModelService(pipeline, tmp_path)
    image = EncodedImage(np.zeros((32, 32)), np.zeros(pipeline.tokenizer.grid, np.int64), "PA")
    answer, _ = match_texts(service.match(image, "The lungs are clear."))
    assert "normal" in answer and "of 16" in answer and "No known finding" not in answer
    answer, _ = match_texts(service.match(image, "Possible effusion."))
    assert "Pleural Effusion" in answer and "of 16" not in answer and "No known finding" not in answer


def test_a_prompt_that_the_model_cannot_show_has_a_notice(model_folder, tmp_path):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    for trained, text, part in (
        ((), "bananas", "No known finding"),
        (("Edema",), "Pacemaker in place. Mild edema.", "Support Devices"),
        (("Edema",), "Mild edema.", None),
        ((), "", None),
    ):
        service = ModelService(pipeline, tmp_path)
        service.trained = trained or service.trained
        notice = [*Endpoints(service, []).generate(text, [], 1, 0, 2.0, "PA", 0.5)][-1][0]
        assert part in notice if part else notice == "", (text, notice)


def test_bars_and_tables_read_no_bare_0():
    service = SimpleNamespace(
        pipeline=SimpleNamespace(tokenizer=SimpleNamespace(grid=(4, 4), codebook_size=8)),
        untrained=lambda name: ("Fracture",) * (name == "Fracture"),
    )
    bars_of = Endpoints(service, []).bars  # type: ignore[arg-type]
    # The browser sends 0.0 back as the integer 0.
    for row in (["Edema", 0, 0, -0.1, 0], ["b", None, 0, -0.1, 0], ["b", None, 0, -0.1, None]):
        bars, prompts = bars_of([row, ["Fracture", None, 0.4, 0, 0.5]])
        texts = re.sub("<[^>]*>", " ", bars["value"]) + " ".join(prompts["metadata"]["display_value"][0])
        assert not re.search(r"(?<![\d.])0%?(?![\d.])", texts), texts
        assert "not trained on" in bars["value"].partition("Fracture")[2], "no score of it"
    assert "none of" in bars_of([["Edema", 0, 0, 0, 0]])[0]["value"], "as the match says it"
    assert "percentile" in PROMPT_COLUMNS[-1] and prompts["metadata"]["display_value"][1][-1] == "50%"
    assert "<img" not in bars_html([("<img src=x>", 0.5, "<img>")])


def test_similar_studies_are_listed_without_markup_of_their_texts():
    listed = studies_html([[1, 0.5, "s<1>", "PA", "<img src=x>", ""], [2, 0.25, "s2", "", "", "No\nchange."]])
    assert listed.count('class="study"') == 2 and "<img" not in listed and "s<1>" not in listed
    texts = re.sub("<[^>]*>", " ", listed)
    assert "0.250" in texts and "No change." in texts and texts.count("Findings") == texts.count("Impression") == 1


def test_an_error_is_the_message_and_empties_the_results_before():
    def handler(text):
        yield "Working …", "earlier"
        raise UserError(text)

    assert [*in_words(handler, [None])("too large")][0] == ("Working …", "earlier")
    message, result = [*in_words(handler, [None])("too large")][-1]
    assert "too large" in message and result is None


def test_a_run_ends_when_its_client_passes_to_another_image():
    service = SimpleNamespace(
        pipeline=SimpleNamespace(tokenizer=SimpleNamespace(grid=(4, 4), codebook_size=8)),
        index=None,
        read=lambda path, view: SimpleNamespace(pixels=np.zeros((4, 4))),
        is_outside=lambda image: False,
        report=lambda image: iter(["a", "a b", "a b c"]),
    )
    endpoints = Endpoints(service, [])  # type: ignore[arg-type]
    one, other = SimpleNamespace(session_hash="one"), SimpleNamespace(session_hash="other")
    run = endpoints.read("a.png", "PA", "", 4, one)
    assert [next(run)[2] for _ in range(3)][-1] == "a"
    endpoints.leave(other)
    assert next(run)[2] == "a b"
    endpoints.leave(one)
    assert not [*run] and not endpoints._running


def test_a_match_generates_no_image_and_the_map_generates_once_a_view(model_folder, tmp_path, monkeypatch):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    service, generated = ModelService(pipeline, tmp_path), []
    codes, side = np.zeros(pipeline.tokenizer.grid, np.int64), pipeline.tokenizer.image_size
    monkeypatch.setattr(service, "read", lambda path, view: EncodedImage(np.zeros((side, side)), codes, view))
    draw = pipeline.draw
    monkeypatch.setattr(pipeline, "draw", lambda *a, **k: generated.append(a) or draw(*a, **k))
    endpoints, client = Endpoints(service, []), SimpleNamespace(session_hash="a")
    request = ("a.png", "PA", "No effusion.", client)
    assert "probability" in [*endpoints.compare(*request)][-1][1] and not generated
    for _ in range(2):
        first, (message, marked) = endpoints.locate(*request)
        assert first[0] and first[1] is None and not message
        assert marked.shape == (side, side, 3) and len(generated) == 1


def test_a_picture_that_cannot_be_decoded_is_refused_with_the_formats(model_folder, tmp_path):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    service = ModelService(pipeline, tmp_path)
    for content in (b"a letter", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=r"not a readable image.*PNG.*give DICOM, PNG or JPEG"):
            service.read(str(tmp_path / "a.png"))


def test_a_statement_is_no_whole_report():
    for text in (
        "Large left effusion.",
        "Effusion",
        "No effusion. No pneumothorax.",
        "Heart 1.5 times enlarged",
        "",
        "C.T. ratio of approx. 0.6",
    ):
        assert not is_whole_report(text), text
    for text in ("\n FINDINGS:  Large effusion.", "The heart is large. No effusion. No pneumothorax.", "a\nb\nc"):
        assert is_whole_report(text), text


def test_findings_are_offered_that_reports_state():
    reports = ["Large pleural effusion. No pneumothorax."] * 60 + ["Cardiomegaly."] * 39 + ["Rib fracture."]
    assert stated_findings(reports) == ("Cardiomegaly", "Pleural Effusion"), "not a denied, not a rare one"
    assert stated_findings([]) == ()


def test_the_training_data_is_read_from_the_model_card(root, tmp_path):
    assert training_source(tmp_path) == ""
    for card, source in [
        ("# A model\n- data: source `mimic-cxr`; 10 steps\n", "mimic-cxr"),
        ("- data: source `<img src=x>`\n", ""),
        ("no line about it", ""),
    ]:
        (tmp_path / "README.md").write_text(card)
        assert training_source(tmp_path) == source, card
    shipped = root / "models" / "phantom" / "model"
    if shipped.is_dir():
        assert training_source(shipped) == "phantom"


def test_an_image_unlike_the_training_data_has_a_notice_that_stays(model_folder, tmp_path, monkeypatch):
    pipeline = MedUnifierPipeline.from_pretrained(str(model_folder), "cpu")
    service = ModelService(pipeline, tmp_path, learned=("Edema",))
    codes, side = np.zeros(pipeline.tokenizer.grid, np.int64), pipeline.tokenizer.image_size
    monkeypatch.setattr(service, "read", lambda path, view: EncodedImage(np.zeros((side, side)), codes, view))
    monkeypatch.setattr(service, "report", lambda image: iter(["No effusion."]))
    monkeypatch.setattr(service, "findings", lambda image, labels: [])
    endpoints, session = Endpoints(service, []), SimpleNamespace(session_hash="one")

    def messages():
        return [update[0] for update in endpoints.read("image.png", "PA", "", 4, session)]

    assert messages()[-1] == "", "without a reference nothing is known"
    nll = float(pipeline.image_nll(codes[None], ["PA"])[0])
    for median, notice in ((nll + 2.0, OUTSIDE), (nll - 2.0, OUTSIDE), (nll + 0.5, "")):
        pipeline.reference = LikelihoodReference("", "phantom", "validate", 100, median, (*[0.0] * 99, 1.0, 1.0))
        found = messages()
        assert found[-1] == notice and found[1].startswith(notice) and found[1] != notice
