"""The pure half: traces, memory and time. Never imports torch."""
