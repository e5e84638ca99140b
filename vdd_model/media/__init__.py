"""Video and pictures in and out, with PyAV."""
