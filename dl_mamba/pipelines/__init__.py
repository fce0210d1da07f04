"""From files to trained models and back: what stands behind the command line, callable from Python as well."""
