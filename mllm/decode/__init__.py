"""From a request to text and pixels. `program` says what happens for a request, `batch` runs the steps of many requests
at once, and two drivers run programs: `run` for a function call, `engine` for a server."""
