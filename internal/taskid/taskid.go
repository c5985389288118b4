// Package taskid makes the IDs by which legacy callers know tasks.
package taskid

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"regexp"
	"time"
)

var pattern = regexp.MustCompile(`^[0-9a-f]{24}$`)

// New returns 24 lower-case hexadecimal digits: four bytes of Unix seconds, two
// bytes of fractions of a second, so that IDs sort by age, and six random bytes.
func New(now time.Time) string {
	var id [12]byte
	binary.BigEndian.PutUint32(id[:4], uint32(now.Unix()))                             //nolint:gosec // wraps in 2106
	binary.BigEndian.PutUint16(id[4:6], uint16(now.Nanosecond()<<16/int(time.Second))) //nolint:gosec // less than 1<<16
	_, _ = rand.Read(id[6:])                                                           // never fails
	return hex.EncodeToString(id[:])
}

// Valid reports whether s has the shape of a task ID.
func Valid(s string) bool { return pattern.MatchString(s) }
