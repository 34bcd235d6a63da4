"""Fifty programs at once for two minutes, and two hundred damaged films: slow, and the server must not notice."""

import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError

from data.phantom import Phantom
from data.synthetic import save_synthetic_dicom, save_synthetic_png

pytestmark = pytest.mark.slow
SECONDS, CLIENTS = 120, 50


def memory_of(process):
    """Resident MiB."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def test_fifty_clients_for_two_minutes(server, new_client, tmp_path):
    film = tmp_path / "film.png"
    save_synthetic_png(film, Phantom(64, 3).study(1).images[0], "a phantom")
    errors, answered, full, lock = [], 0, 0, threading.Lock()
    end = time.monotonic() + SECONDS

    def work(number):
        nonlocal answered, full
        client, given = new_client(), handle_file(film)
        turn = number
        while time.monotonic() < end:
            turn += 1
            try:
                if turn % 3 == 0:
                    client.predict("No effusion.", [], 1, turn, 1, "PA", api_name="/draw")
                elif turn % 3 == 1:
                    client.predict(given, "PA", api_name="/report")
                else:
                    client.predict(given, "PA", "", api_name="/findings")
                with lock:
                    answered += 1
            except (AppError, QueueError) as error:
                with lock:
                    full += "ueue is full" in str(error)
                    if "ueue is full" not in str(error):
                        errors.append(str(error))
                time.sleep(0.2)

    new_client()
    before = memory_of(server.process)
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(CLIENTS)))
    grown = memory_of(server.process) - before
    print(f"{answered} answered, {full} told that the queue is full, memory {before:.0f} MiB + {grown:.0f} MiB")
    assert not errors, errors[:3]
    assert answered > CLIENTS and grown < 400
    urllib.request.urlopen(f"{server.url}/health", timeout=10)


def test_two_hundred_damaged_films_are_a_picture_or_a_refusal(server, new_client, tmp_path):
    draw, client = np.random.default_rng(0), new_client()
    whole = tmp_path / "film.dcm"
    save_synthetic_dicom(whole, Phantom(64, 3).study(1).images[0], "a phantom", "AP")
    content, refused = np.frombuffer(whole.read_bytes(), np.uint8), 0
    for number in range(200):
        damaged = content[: draw.integers(140, len(content))].copy() if number % 2 else content.copy()
        places = draw.integers(128, min(len(damaged), 1500), 20)
        damaged[places] = draw.integers(0, 256, 20)
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(damaged.tobytes())
        try:
            client.predict(handle_file(path), "PA", api_name="/show")
        except AppError as error:
            refused += 1
            assert "defect" not in str(error) and len(str(error)) < 200
    assert refused > 100
    urllib.request.urlopen(f"{server.url}/health", timeout=10)
