import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # libraries read it as they are imported
