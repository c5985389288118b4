package devicefile

import (
	"strings"
	"time"

	"batchtask.dev/operator/internal/shadow"
)

const (
	// mostKnown bounds how many documents are remembered, and how many shadows.
	mostKnown = 1024
	// mostExpected is the size of a document, in bytes, up to which it is remembered.
	mostExpected = 4096
)

// document is a part of a shadow.
type document struct {
	text   string
	object shadow.Object // nil for no text
}

// documents makes shadows of documents, once for those that are the same, as those of
// most devices of a product are.
type documents struct {
	now     time.Time // of the shadows
	known   map[string]document
	shadows map[[2]string]shadow.Stored // by the texts of both parts
}

func newDocuments(now time.Time) *documents {
	return &documents{now: now, known: map[string]document{}, shadows: map[[2]string]shadow.Stored{}}
}

// read reads a document; "" is none.
func (d *documents) read(text string) (document, error) {
	if text == "" {
		return document{}, nil
	}
	if known, ok := d.known[text]; ok {
		return known, nil
	}
	text = strings.Clone(text) // without the line that it stands on
	object, err := shadow.ParseDesired(text)
	if err != nil {
		return document{}, err
	}
	read := document{text, object}
	if len(text) <= mostExpected {
		remember(d.known, text, read)
	}
	return read, nil
}

// shadow makes a shadow. A file has no times, so that of the import takes their place.
func (d *documents) shadow(reported, desired document) (shadow.Stored, error) {
	texts := [2]string{reported.text, desired.text}
	if known, ok := d.shadows[texts]; ok {
		return known, nil
	}
	doc := &shadow.Document{}
	if err := doc.Update(shadow.Update{Reported: reported.object, Desired: desired.object}, d.now); err != nil {
		return shadow.Stored{}, err
	}
	stored := doc.Stored()
	if len(reported.text)+len(desired.text) <= mostExpected {
		remember(d.shadows, texts, stored)
	}
	return stored, nil
}

// remember puts a value into a map, which forgets all it has when it is full.
func remember[K comparable, V any](known map[K]V, key K, value V) {
	if len(known) == mostKnown {
		clear(known)
	}
	known[key] = value
}
