"""Operations: signatures that are kept, statements that are told apart."""
