"""The service: settings, jobs, the command line, and what decides who does what where."""
