"""What a run trains: each task has its loss, its parameters, its random draws and its previews."""
