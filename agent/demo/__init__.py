"""The demonstration: a private mongod, the incident that the agent must prevent, and the agent that clears it.

Nothing outside this package imports it, apart from the command line and the tests.
"""
