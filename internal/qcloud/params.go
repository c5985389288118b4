package qcloud

import (
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Bounds of a call.
const (
	// MaxBytes is the largest body, and the largest query, of a call. A payload of 16 KiB
	// that is nothing but quotation marks, in JSON that is itself in a string of JSON, takes
	// 192 KiB percent-encoded.
	MaxBytes = 256 << 10
	// MaxParameters is how many parameters a call may have.
	MaxParameters = 256
	// MaxNameBytes is how long the name of a parameter may be.
	MaxNameBytes = 256
)

// params are the parameters of a call as they were sent, by name.
type params map[string]string

// add takes one parameter. A parameter that is given twice is refused: which of
// the two is meant, and which was signed, nobody can tell.
func (p params) add(name, value string) error {
	if err := checkName(name); err != nil {
		return err
	}
	switch {
	case !utf8.ValidString(value):
		return Errorf(KindInvalidParameter, name, "must be UTF-8")
	case len(p) == MaxParameters:
		return Errorf(KindTooLarge, "", "there are more than %d parameters", MaxParameters)
	}
	if _, exists := p[name]; exists {
		return Errorf(KindInvalidParameter, name, "is given twice")
	}
	p[name] = value
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return Errorf(KindBadRequest, "", "a parameter has no name")
	case len(name) > MaxNameBytes:
		return Errorf(KindBadRequest, "", "the name of a parameter has more than %d bytes", MaxNameBytes)
	case !utf8.ValidString(name):
		return Errorf(KindBadRequest, "", "the name of a parameter is not UTF-8: %q", name)
	}
	return nil
}

// urlencoded takes the parameters of a query or of an urlencoded body. Only "&"
// separates: unlike net/url it takes a semicolon for part of a value, because
// callers send JSON without encoding it, as the examples of CreateTask do.
func (p params) urlencoded(text string) error {
	for text != "" {
		var pair string
		pair, text, _ = strings.Cut(text, "&")
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(name)
		if err != nil {
			return Errorf(KindBadRequest, "", "the name of a parameter: %w", err)
		}
		if err := checkName(name); err != nil {
			return err
		}
		value, err = url.QueryUnescape(value)
		if err != nil {
			return Errorf(KindInvalidParameter, name, "%w", err)
		}
		if err := p.add(name, value); err != nil {
			return err
		}
	}
	return nil
}

// multipart takes the parameters of a body of the type multipart/form-data. Files
// are passed over: clients do not sign them, and no action takes one.
func (p params) multipart(body []byte, boundary string) error {
	if boundary == "" {
		return Errorf(KindBadRequest, "", "Content-Type: multipart/form-data needs a boundary")
	}
	reader := multipart.NewReader(bytes.NewReader(body), boundary)
	for range MaxParameters + 1 {
		part, err := reader.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return Errorf(KindBadRequest, "", "multipart body: %w", err)
		}
		if part.FileName() != "" {
			continue
		}
		value, err := io.ReadAll(part)
		if err != nil {
			return Errorf(KindBadRequest, "", "multipart body: %w", err)
		}
		if err := p.add(part.FormName(), string(value)); err != nil {
			return err
		}
	}
	return Errorf(KindTooLarge, "", "the multipart body has more than %d parts", MaxParameters)
}
