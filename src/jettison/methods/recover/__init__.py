"""Methods that recover quality after compression, one file each."""
