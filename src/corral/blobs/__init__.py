"""Content-addressed storage: blobs and trees named by digest, below a tenant's own namespace."""
