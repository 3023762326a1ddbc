"""The processes: workers that convert and build, and what runs inside a serving rank."""
