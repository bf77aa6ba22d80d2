"""Data of face avatars: a mesh and a texture per frame, synthetic or recorded in the layout of multiface."""
