"""No argument of any endpoint reads a file of the machine or fetches a URL, over whichever route it comes."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.stage2_unified.app.inside import (
    CANARY,
    application,
    call_by_queue,
    call_directly,
    call_endpoint,
    file_data,
    upload,
    watched_network,
)

gr = pytest.importorskip("gradio")


CLICK = {"index": [3, 3]}


@pytest.fixture(scope="module")
def served(model_folder):
    with application(model_folder, phantoms=4) as running:
        yield running


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    path.write_text(CANARY)
    return path


def picture():
    content = io.BytesIO()
    pixels = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    Image.fromarray(pixels).save(content, "png")
    return content.getvalue()


@pytest.fixture
def clients(served):
    """Two browsers of one machine, each with an upload: the attacker and another client."""
    pair = [served.client(), served.client()]
    for client in pair:
        assert client.get("/").status_code == 200
    return [(client, upload(client, "image.png", picture())) for client in pair]


def harmless(component, path):
    """A value that a component takes."""
    if isinstance(component, gr.File):
        return file_data(path)
    if isinstance(component, gr.Dataframe):
        return {"headers": ["a"], "data": [["b"]], "metadata": None}
    if isinstance(component, gr.CheckboxGroup):
        return []
    if isinstance(component, gr.Dropdown | gr.Radio):
        return component.choices[0][1]
    if isinstance(component, gr.Number | gr.Slider):
        return 1
    if isinstance(component, gr.Dataset):
        return 0
    return "No effusion." if isinstance(component, gr.Textbox) else None


def attacks(secret, uploaded, other):
    """Values that name a file or an address in some form."""
    places = [str(secret), "/etc/passwd", "http://canary.example/image.png", other, f"{uploaded}/../../../{secret}"]
    for place in places:
        yield file_data(place)
    for place in ("https://canary.example/image.png", "file:///etc/passwd"):
        yield place
    given = file_data(str(secret))
    yield {"path": str(secret)}
    yield file_data(str(secret), url="http://canary.example/image.png", is_stream=True)
    yield [given]
    yield [file_data(uploaded), given]
    yield {"image": given, "caption": "a"}
    yield {"a": [{"b": given}]}
    yield {"value": given, "__type__": "update"}
    yield {"headers": ["a"], "data": [[given]], "metadata": None}
    yield {"headers": [given], "data": [["http://canary.example/a"]], "metadata": given}
    yield {"path": given, "meta": {"_type": "gradio.FileData"}}
    nested = given
    for _ in range(40):
        nested = [nested]
    yield nested


def copies(served, secret):
    """Files in the server's folder with the secret's content."""
    return [path for path in served.folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["some forms", "every form"]
)
def test_every_argument_of_every_endpoint_refuses_files_and_addresses(
    served, clients, secret, monkeypatch, capfd, every
):
    """Each kind of component in every form, its further arguments in four forms each, by turns, or in every form."""
    (client, uploaded), (_, other) = clients
    forms = list(attacks(secret, uploaded, other))
    assert not copies(served, secret)
    tried, kinds = 0, set()
    with watched_network(monkeypatch) as attempts:
        for index, function in served.page.fns.items():
            good = [harmless(component, uploaded) for component in function.inputs]
            # The value of a state is stored on the server; what a client sends instead is ignored.
            calls = {"refused": [], "ignored": []}
            for place, component in enumerate(function.inputs):
                chosen = forms
                if not every and type(component) in kinds:
                    chosen = [forms[(index + place + 5 * turn) % len(forms)] for turn in range(4)]
                kinds.add(type(component))
                made = [[*good[:place], form, *good[place + 1 :]] for form in chosen]
                calls["ignored" if isinstance(component, gr.State) else "refused"] += made
            for expected, some in calls.items():
                answers = []
                if function.queue is False:
                    answers += [call_directly(client, index, data, event_data=CLICK) for data in some]
                else:
                    for start in range(0, len(some), 25):  # the queue takes 32
                        answers += call_by_queue(client, index, some[start : start + 25], event_data=CLICK)
                    if function.api_visibility == "public":  # this route is slow
                        answers += [
                            call_endpoint(client, function.api_name, data) for data in some[:: 4 if every else 7]
                        ]
                for answered, response in answers:
                    tried += 1
                    assert CANARY not in response and "root:" not in response, (function.name, response)
                    assert "defect" not in response, "refused by a check, not by luck"
                    assert "ueue is full" not in response
                    stated = "**Error:**" in response and hasattr(function.fn, "refused")
                    assert not answered or stated or expected == "ignored", (function.name, response)
        assert not attempts
    assert tried > (700 if every else 250) and not copies(served, secret)
    assert "Traceback" not in capfd.readouterr().err


def test_arguments_by_name_are_refused_as_well(served, clients, secret):
    (client, uploaded), _ = clients
    tried = 0
    for name, endpoint in served.page.get_api_info()["named_endpoints"].items():
        function = next(one for one in served.page.fns.values() if f"/{one.api_name}" == name)
        boxes = [box for box in function.inputs if not box.skip_api]
        names = [parameter["parameter_name"] for parameter in endpoint["parameters"]]
        good = {name: harmless(box, uploaded) for name, box in zip(names, boxes, strict=True)}
        for attacked in names:
            body = good | {attacked: file_data(str(secret))}
            started = client.post(f"/gradio_api/call/v2{name}", json=body)
            assert started.status_code == 200, started.text
            response = client.get(f"/gradio_api/call/v2{name}/{started.json()['event_id']}").text
            assert "event: error" in response and CANARY not in response and "defect" not in response, (
                name,
                attacked,
            )
            tried += 1
    assert tried > 20 and not copies(served, secret)


def test_values_that_are_harmless_are_taken(served, clients):
    (client, uploaded), _ = clients
    answered, response = call_endpoint(client, "show", [file_data(uploaded), "PA"])
    assert answered, response
    answered, response = call_endpoint(client, "match", [file_data(uploaded), "PA", "No effusion."])
    assert answered, response


def test_what_stands_beside_an_uploads_path_is_not_looked_at(served, clients, monkeypatch):
    (client, uploaded), _ = clients
    address = "http://canary.example/image.png"
    given = file_data(uploaded, url=address, is_stream=True, orig_name=address, size={"path": address})
    with watched_network(monkeypatch) as attempts:
        answered, response = call_endpoint(client, "show", [given, "PA"])
    assert answered and not attempts and "canary" not in response


def test_an_upload_is_its_clients_alone(served, clients):
    (one, uploaded), (other, _) = clients
    assert call_endpoint(one, "show", [file_data(uploaded), "PA"])[0]
    answered, response = call_endpoint(other, "show", [file_data(uploaded), "PA"])
    assert not answered and "upload" in response


def test_gradio_checks_paths_too_where_ours_do_not(served, clients, secret, monkeypatch):
    (client, _), _ = clients
    monkeypatch.setattr(type(served.page), "_checked", lambda self, components, values, request: values)
    answered, _ = call_endpoint(client, "draw", [file_data(str(secret)), [], 1, 0, 1, "PA", 0.6])
    assert not answered and not copies(served, secret)


def test_an_event_carries_no_file_either(served, clients, secret, monkeypatch, capfd):
    (client, _), _ = clients
    given = file_data(str(secret))
    with watched_network(monkeypatch) as attempts:
        for index, function in served.page.fns.items():
            if function.name not in ("choose", "pick"):
                continue
            data = [harmless(component, "") for component in function.inputs]
            for event in (
                given,
                {"index": given},
                {"index": [given, given]},
                {"index": "http://canary.example"},
                [1],
            ):
                answered, response = call_directly(client, index, data, event_data=event)
                assert not answered and CANARY not in response
            good = {"index": 0, "value": given} if function.name == "choose" else {"index": [3, 3], "value": given}
            answered, response = call_directly(client, index, data, event_data=good)
            assert answered and str(secret) not in response
    assert not attempts and not copies(served, secret)
    assert "Traceback" not in capfd.readouterr().err


def test_numbers_and_choices_are_bounded_in_words(served, clients, capfd):
    (client, uploaded), _ = clients
    for count, seed, view in ((9, 0, "PA"), (1, 10**400, "PA"), (1, True, "PA"), (1, None, "PA"), (1, 0, "sideways")):
        answered, response = call_endpoint(client, "draw", ["No effusion.", [], count, seed, 1, view, 0.6])
        assert not answered and "defect" not in response, response
    answered, response = call_endpoint(client, "match", [file_data(uploaded), "PA", "\ud800"])
    assert not answered and "defect" not in response
    assert "Traceback" not in capfd.readouterr().err


def test_a_refused_or_empty_field_is_stated_beside_the_control(served, clients, capfd):
    (client, uploaded), _ = clients
    fill = [None, 0, 0, 2, 2, "one code", 3]
    for name, data, words in (
        ("generate", ["", [], 1, None, 1, "PA", 0.6], "enter a seed"),
        ("generate", ["", [], None, 0, 1, "PA", 0.6], "Number of radiographs"),
        ("generate", ["", [], 1, 1e300, 1, "PA", 0.6], "Seed"),
        ("generate", ["https://canary.example", [], 1, 0, 1, "PA", 0.6], "Report"),
        ("compare", [file_data(uploaded), "PA", "https://canary.example"], "match"),
        ("read", [file_data(uploaded + "x"), "PA", "", 4], "upload it again"),
        *[("fill", [*fill[:place], None, *fill[place + 1 :]], "enter a ") for place in (1, 2, 3, 4, 6)],
    ):
        numbers = {function.name: number for number, function in served.page.fns.items()}
        if name == "fill":  # of the codes of this session
            call_by_queue(client, numbers["encode"], [[file_data(uploaded), "PA"]], session_hash="codes")
        ((answered, response),) = call_by_queue(client, numbers[name], [data], session_hash="codes")
        assert answered and "**Error:**" in response and words in response, (name, data, response)
    assert "Traceback" not in capfd.readouterr().err


def test_a_direct_call_does_not_pass_by_the_queue(served, clients):
    (client, _), _ = clients
    index = next(i for i, function in served.page.fns.items() if function.api_name == "draw")
    answered, _ = call_directly(client, index, ["No effusion.", [], 1, 0, 1, "PA", 0.6])
    assert not answered
