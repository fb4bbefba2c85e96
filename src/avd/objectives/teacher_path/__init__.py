"""Terms that follow the teacher's path over several calls of a network: its tangent, and where its first steps lead."""
