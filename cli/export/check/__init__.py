"""A check's result in the formats of machines: one file each, `render(found) -> text`."""
