"""Raw file -> interactions -> sequences -> batches. Nothing here knows models or training."""
