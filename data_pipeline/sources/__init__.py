"""Where documents come from: files of several formats, each cut into chunks that are read alone."""
