"""Model families: `native` is the project's own model, composed from parts of transformers."""
