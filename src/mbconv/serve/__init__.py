"""Pictures over HTTP: a page for people, an API for programs, batches across clients."""
