"""Many concurrent clients: each gets a result or "queue is full", and memory stays bounded."""

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

from medunifier.data.images.synthetic import save_synthetic_dicom
from medunifier.data.phantom import Phantom
from tests.stage2_unified.app.conftest import LOGIN
from tests.stage2_unified.app.served import serving

FULL, REFUSED, EVICTED = "queue is full", "refused", "upload it again"


def memory(process):
    """MiB of a process and its children."""
    family = [process, *process.children(recursive=True)]
    return sum(member.memory_info().rss for member in family if member.is_running()) / 2**20


def requests_of(folder, number):
    """The requests of client ``number``: its own DICOM file, a text, a generation, an edit, an invalid file."""
    image, letter = folder / f"image-{number}.dcm", folder / f"letter-{number}.png"
    save_synthetic_dicom(image, Phantom(64, 5).study(number).images[0], "a phantom", "PA")
    letter.write_text(f"letter {number}")
    given = handle_file(image)
    return [
        ("report", (given, "PA")), ("findings", (given, "PA", "")), ("match", (given, "PA", "No effusion.")),
        ("similar", (given, "PA", 3)), ("draw", ("Left effusion.", [], 2, number, 2.0, "PA")),
        ("tokens", (given, "PA")), ("edit", (0, 0, 2, 2, "one code", 3)), ("show", (handle_file(letter), "PA")),
    ]  # fmt: skip


def call_until(ends, url, folder, number, begin, login):
    """Count what one client received: results by endpoint, refusals, full queues, other errors by message."""
    counts = Counter()
    calls = requests_of(folder, number)
    calls = calls[number % len(calls) :] + calls[: number % len(calls)]  # clients start with different calls
    client = Client(
        url, auth=login, verbose=False, download_files=str(folder / f"got-{number}"), httpx_kwargs={"timeout": 120}
    )
    begin.wait(120)
    has_codes = False  # /edit needs an earlier /tokens
    while time.monotonic() < ends[0]:
        for name, arguments in calls:
            if time.monotonic() >= ends[0] or (name == "edit" and not has_codes):
                continue
            try:
                client.predict(*arguments, api_name=f"/{name}")
                counts[name] += 1
                has_codes |= name == "tokens"
            except (AppError, QueueError) as error:
                if FULL in str(error).lower():
                    counts[FULL] += 1
                    time.sleep(0.2)  # an immediate retry would only fill it again
                elif name == "show" and "not a DICOM file" in str(error):
                    counts[REFUSED] += 1
                elif EVICTED in str(error):  # all clients share one address, hence its quota of uploads
                    counts[EVICTED] += 1
                else:
                    counts[f"{name}: {error}"] += 1
            except Exception as error:
                counts[f"{name}: {type(error).__name__}: {error}"] += 1
    client.close()
    return counts


def test_eight_clients_get_results_or_a_full_queue(server, tmp_path, record_property):
    check_load(server, tmp_path, 8, 5, LOGIN, record_property)


@pytest.mark.slow
def test_fifty_clients_get_results_or_a_full_queue(model_folder, tmp_path, record_property):
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server", model=model_folder, phantoms=16, port=0, queue=25) as server:
        check_load(server, tmp_path, 50, 120, None, record_property)


def check_load(server, folder, clients, seconds, login, record_property):
    """Every answer is one that was requested or "queue is full", /health always answers, and memory is bounded."""
    ends = []
    begin = threading.Barrier(clients + 1, lambda: ends.append(time.monotonic() + seconds))
    process = psutil.Process(server.process.pid)
    with ThreadPoolExecutor(clients) as pool:
        jobs = [pool.submit(call_until, ends, server.url, folder, number, begin, login) for number in range(clients)]
        begin.wait(120)
        sizes, health = [], Counter()
        while not all(job.done() for job in jobs):
            sizes.append(memory(process))
            health[httpx.get(f"{server.url}/health", timeout=30).status_code] += 1
            time.sleep(0.5)
    counts = sum((job.result() for job in jobs), Counter())
    sizes.append(memory(process))
    assert set(health) == {200}, health
    answered = {"report", "findings", "match", "similar", "draw", "tokens", "edit"}
    assert set(counts) - {FULL, REFUSED, EVICTED} <= answered, counts
    assert counts[EVICTED] <= sum(counts[name] for name in answered), counts
    assert len(answered & set(counts)) >= 3 and sum(counts.values()) > clients, counts
    warm = max(sizes[: max(1, len(sizes) // 4)])
    grown = max(sizes) - warm
    record_property("memory_mib", {"warm": round(warm), "most": round(max(sizes)), "end": round(sizes[-1])})
    print(json.dumps({"clients": clients, "seconds": seconds, "counts": counts, "warm": warm, "most": max(sizes)}))
    assert grown < 300, f"{warm:.0f} MiB after a quarter of the time, {max(sizes):.0f} at the most"
