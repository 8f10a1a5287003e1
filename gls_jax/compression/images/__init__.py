"""Images: model adapter, codec, crops, trials, data sets, and images in files."""
