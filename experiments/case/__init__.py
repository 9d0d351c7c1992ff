"""The paper's case study: what trained models recommend to one user."""
