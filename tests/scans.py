"""Small DICOM files and NIfTI volumes for tests."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SERIES = "1.2.40.0.13.77.1"
AXIAL = (1, 0, 0, 0, 1, 0)


def dataset(stored, *, bits=12, signed=False, **attributes) -> FileDataset:
    """A CT image of these stored values, of which `attributes` are set or (None) left out."""
    stored = np.asarray(stored)
    allocated = 8 if bits <= 8 else 16 if bits <= 16 else 32
    kind = f"<{'i' if signed else 'u'}{allocated // 8}"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, Dataset(), preamble=b"\0" * 128, file_meta=meta)
    values = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "StudyInstanceUID": "1.2.40.0.13.77.2",
        "SeriesInstanceUID": SERIES,
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "PatientName": "Doe^Jane",
        "PatientID": "4711",
        "PatientBirthDate": "19700101",
        "InstitutionName": "A Hospital",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "BitsAllocated": allocated,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(signed),
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "PixelSpacing": [0.5, 0.75],
        "ImageOrientationPatient": list(AXIAL),
        "ImagePositionPatient": [0, 0, 0],
    } | attributes
    for name, value in values.items():
        if value is not None:
            setattr(data, name, value)
    data.PixelData = stored.astype(kind).tobytes()
    data["PixelData"].VR = "OB" if allocated == 8 else "OW"
    return data


def to_bytes(data: Dataset) -> bytes:
    """The file's bytes."""
    whole = io.BytesIO()
    data.save_as(whole, enforce_file_format=True)
    return whole.getvalue()


def dicom(stored, **attributes) -> bytes:
    """The bytes of `dataset`."""
    return to_bytes(dataset(stored, **attributes))
