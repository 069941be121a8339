"""What the pytest plugin does when a test asks for it: measure, judge, and run tests in a process of their own."""
