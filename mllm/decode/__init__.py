"""From a request to text and pixels: `program` says what happens, `batch` runs the steps of many at once, and two
drivers run programs: `run` for a call, `engine` for a server."""
