"""View positions: defined terms, spellings and codes are the same view."""

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medunifier.data.images.dicom import decode_dicom
from medunifier.data.images.radiograph import read_image
from medunifier.data.images.views import projection, view_of_header, view_position
from medunifier.stage2_unified.model.vocabulary import view_name
from tests.data.dicom_samples import file_bytes, sample_dicom

LATERAL = (
    "RL,LL,LATERAL,lateral,LAT,L LAT,LATERAL LEFT,Right Lateral,XTABLE LATERAL,LARGE LATERAL,LAT.,LLAT,lateral (left)"
)
PA = "PA,pa ,P.A.,Postero-anterior,POSTEROANTERIOR,PA ERECT,CHEST PA,PA/Upright,postero anterior"
AP = "AP,A.P.,antero-posterior,AP SUPINE,PORTABLE AP,AP_horizontal,AP semi-erect,ap mobile"
OTHER = "LLD,AP LLD,RAO,LPO,AP AXIAL,PA/LAT,AP LORDOTIC,APICAL,LATERAL DECUBITUS,OBLIQUE,L,SWIMMERS,Miller,,PAP"


@pytest.mark.parametrize(("view", "texts"), [("lateral", LATERAL), ("pa", PA), ("ap", AP), ("", OTHER)])
def test_spellings_of_a_view_are_one_class(view, texts):
    for text in texts.split(","):
        assert projection(text) == view, text
        assert view_name(text) == (view or "other"), text


def test_free_text_is_no_position():
    for text in ("MILLER", "PA Miller", "AP\\JOHN", "PAULA"):
        assert view_position(text) == ""
    assert view_position(" ll ") == "LL" and view_position("RL") == "RL"


def header(position="", code="", meaning="", scheme="SRT", orientation=None):
    dataset = sample_dicom()
    dataset.ViewPosition = position
    if code or meaning:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code, scheme, meaning
        dataset.ViewCodeSequence = [item]
    if orientation:
        dataset.PatientOrientation = orientation
    return dataset


@pytest.mark.parametrize(
    ("fields", "view"),
    [
        ({"code": "R-10206"}, "ap"),
        ({"code": "399348003", "scheme": "SCT"}, "ap"),
        ({"code": "R-40888"}, "pa"),
        ({"code": "272479007", "scheme": "SCT"}, "pa"),
        ({"code": "R-10214", "scheme": "SNM3", "meaning": "postero-anterior"}, "pa"),
        ({"code": "R-10232"}, "lateral"),
        ({"code": "399173006", "scheme": "SCT"}, "lateral"),
        ({"code": "399067008", "scheme": "SCT"}, "lateral"),
        ({"code": "X1", "scheme": "99MAKER", "meaning": "Left lateral"}, "lateral"),
        ({"position": "AP", "code": "R-40888"}, "ap"),
        ({"position": "Dr. Miller", "code": "R-40888"}, "pa"),
        ({"code": "399135007", "scheme": "SCT"}, "other"),
        ({"orientation": ["A", "F"]}, "lateral"),
        ({"orientation": ["P", "F"]}, "lateral"),
        ({"orientation": ["L", "F"]}, "other"),
        ({"orientation": ["AL", "F"]}, "other"),
        ({"position": "PA", "orientation": ["A", "F"]}, "pa"),
    ],
)
def test_the_view_of_a_header(fields, view, tmp_path):
    (tmp_path / "a.dcm").write_bytes(file_bytes(header(**fields)))
    assert view_name(read_image(tmp_path / "a.dcm").view) == view


def test_a_damaged_view_code_does_not_lose_the_image():
    dataset = sample_dicom()
    dataset.ViewPosition = ""
    content = file_bytes(header(code="R-10206"))
    at = content.index(b"\x54\x00\x20\x02SQ")
    damaged = content[:at] + content[at:].replace(b"\xfe\xff\x00\xe0", b"\xfe\xff\x00\xaa", 1)
    pixels = decode_dicom(damaged).pixels
    assert np.array_equal(pixels, decode_dicom(content).pixels)
    dataset.ViewCodeSequence = [Dataset()]
    assert view_of_header(dataset) == ""


def test_real_headers_have_a_view(shared_data):
    """Of Open-I's headers, those with a position that says left or right lateral are lateral."""
    import csv
    import gzip

    with gzip.open(shared_data("openi/dicom_headers.csv.gz"), "rt", encoding="utf-8") as file:
        positions = [row["View Position"] for row in csv.DictReader(file)]
    classes = {name: sum(view_name(text) == name for text in positions) for name in ("pa", "ap", "lateral")}
    assert classes == {"pa": 3593, "ap": 423, "lateral": 717 + 119 + 29 + 2}
