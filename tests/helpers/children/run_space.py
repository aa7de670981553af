"""Run the app.py of the working folder on a port, as if this project were not installed."""

import os
import runpy
import sys

sys.modules["hf_cifar"] = None  # type: ignore[assignment]
sys.path[0] = os.getcwd()  # as `python app.py` has it
os.environ["GRADIO_SERVER_PORT"] = sys.argv[1]
runpy.run_path("app.py", run_name="__main__")
