//! Newtypes for the field's words, so that one can't be taken for another.
