"""The conformance kit for providers: runs one through the whole contract, on volumes of its own."""
