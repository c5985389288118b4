package postgres

import (
	"errors"
	"fmt"

	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/validation"
)

var (
	errName    = errors.New("the name is not 1 to 48 letters, digits, ':', '_' and '-'")
	errVersion = fmt.Errorf("the version is not 0 to %d", int64(shadow.MaxGivenVersion))
)

// canonicals brings devices into the form in which they are stored.
type canonicals struct{ parts, metadata canonicalTexts }

func newCanonicals() canonicals {
	return canonicals{
		parts:    canonicalTexts{of: shadow.CanonicalPart, known: map[string]string{}},
		metadata: canonicalTexts{of: shadow.CanonicalMetadata, known: map[string]string{}},
	}
}

// device returns a device as it is stored, or what is wrong with it.
func (c *canonicals) device(d Device) (Device, error) {
	if !validation.DeviceName(d.Name) {
		return d, errName
	}
	if d.Shadow.Version < 0 || d.Shadow.Version > shadow.MaxGivenVersion {
		return d, errVersion
	}
	if d.Canonical {
		return d, nil
	}
	for _, part := range []*string{&d.Shadow.Reported, &d.Shadow.Desired} {
		if err := c.parts.replace(part); err != nil {
			return d, err
		}
	}
	return d, c.metadata.replace(&d.Shadow.Metadata)
}

// canonicalTexts finds the canonical form of each text once, as long as there are few:
// the devices of a product mostly have the same.
type canonicalTexts struct {
	of    func(string) (string, error)
	known map[string]string
}

// replace puts the canonical form of a text in its place.
func (c *canonicalTexts) replace(text *string) error {
	if *text == "" {
		return nil
	}
	stored, ok := c.known[*text]
	if !ok {
		var err error
		if stored, err = c.of(*text); err != nil {
			return err
		}
		if len(*text) <= mostExpected {
			if len(c.known) == mostKnown {
				clear(c.known)
			}
			c.known[*text] = stored
		}
	}
	*text = stored
	return nil
}
