"""The web page of vidllm, as `python app.py` and hosted spaces start it; see `vidllm/demo.py`."""

from vidllm.demo import launch

if __name__ == "__main__":
    launch()
