package postgres

import "strings"

// nameBytes are the bytes that names of devices are made of.
const nameBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_-"

func madeOfNameBytes(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(nameBytes, r) })
}

// storable returns text as the server takes it: without what is no UTF-8, and without
// the character NUL.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
