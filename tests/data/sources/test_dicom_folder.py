"""Headers of a folder's DICOM files are read within bounds; a file without a readable one is a study of its own."""

import zlib

from pydicom.uid import DeflatedExplicitVRLittleEndian

from medunifier.data.sources import SourceOptions
from medunifier.data.sources.dicom_folder import records as source_records
from tests.data.dicom_samples import file_bytes, sample_dicom


def test_a_header_is_not_inflated_without_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("medunifier.data.images.dicom.MAX_FILE_BYTES", 2**20)
    whole = file_bytes(sample_dicom(syntax=DeflatedExplicitVRLittleEndian))
    start = whole.index(DeflatedExplicitVRLittleEndian.encode()) + len(DeflatedExplicitVRLittleEndian) + 1
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    (tmp_path / "bomb.dcm").write_bytes(whole[:start] + packer.compress(bytes(2**23)) + packer.flush())
    (tmp_path / "whole.dcm").write_bytes(whole)
    sizes, decompress = [], zlib.decompress

    def watched(*given):
        content = decompress(*given)
        sizes.append(len(content))
        return content

    monkeypatch.setattr("pydicom.filereader.zlib.decompress", watched)
    records = list(source_records(tmp_path, SourceOptions(), problems := []))
    assert len(records) == 2 and not problems
    assert sizes and max(sizes) <= 2**20
