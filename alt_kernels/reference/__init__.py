"""The definitions: every op in plain torch, float64-capable; the only oracle the other rooms are tested against."""
