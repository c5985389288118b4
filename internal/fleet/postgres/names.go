package postgres

import "strings"

// storable returns text as the server takes it: without what is no UTF-8, and without
// the character NUL.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
