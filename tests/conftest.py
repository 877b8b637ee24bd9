"""For all tests: no network, no hub, one thread of torch per worker, and signals as a terminal has them."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# What is started in the background, or by nohup, ignores these, and so would every process that a test starts: Luthier leaves it at that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
