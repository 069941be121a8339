"""Front doors: text in, text out."""
