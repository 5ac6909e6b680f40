"""An OpenAI-compatible server and a page to try the model, on top of `mllm.decode.engine`. Needs the group `serve`."""
