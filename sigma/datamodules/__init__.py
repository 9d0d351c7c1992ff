"""Raw file -> interactions -> sequences -> batches. Nothing here builds a model or trains it."""
