"""DICOM and NIfTI, in and out, with units, orientation and all bits: `pip install 'jaxdiff[medical]'`."""
