package qcloud

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // HmacSHA1 is the default of the API, and sound as an HMAC
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"hash"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"
)

// Values of SignatureMethod.
const (
	HmacSHA1   = "HmacSHA1" // the default
	HmacSHA256 = "HmacSHA256"
)

// StringToSign returns the text that a caller signs: method, host and path, "?"
// and the parameters as name=value joined by "&", in the byte order of their
// names, not encoded, without Signature. In the names "_" becomes ".", unless the
// name begins with one.
func StringToSign(method, host, path string, params map[string]string) string {
	return method + host + path + "?" + signedParameters(params, dots, nil)
}

// Sign returns the signature of a text: its HMAC in Base64. Any method but
// HmacSHA256 is HmacSHA1.
func Sign(method, secretKey, text string) string {
	return signParts(method, secretKey, text)
}

// signParts signs a text that is given in parts, without joining them.
func signParts(method, secretKey string, parts ...string) string {
	mac := hmac.New(hashOf(method), []byte(secretKey))
	for _, part := range parts {
		_, _ = io.WriteString(mac, part)
	}
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func hashOf(method string) func() hash.Hash {
	if method == HmacSHA256 {
		return sha256.New
	}
	return sha1.New
}

// sameText compares in a time that does not depend on where texts differ.
func sameText(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// dots writes a name as the documents do, and the clients for PHP and Node.js.
func dots(name string) string {
	if strings.HasPrefix(name, "_") {
		return name
	}
	return allDots(name)
}

// allDots also changes a leading "_", as the clients for Python and Java do.
func allDots(name string) string { return strings.ReplaceAll(name, "_", ".") }

// innerDots keeps a leading "_" and changes the others.
func innerDots(name string) string {
	if strings.HasPrefix(name, "_") {
		return "_" + allDots(name[1:])
	}
	return allDots(name)
}

// asSent is how V3 signs names, and how some clients do in V2.
func asSent(name string) string { return name }

// signedParameters joins the parameters that are not left out. They are sorted by
// the names that were sent, before these are rewritten: so do all clients.
func signedParameters(params map[string]string, write func(string) string, leaveOut []string) string {
	names := make([]string, 0, len(params))
	for name := range params {
		if name != "Signature" && !slices.Contains(leaveOut, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var b strings.Builder
	for i, name := range names {
		if i > 0 {
			b.WriteByte('&')
		}
		b.WriteString(write(name))
		b.WriteByte('=')
		b.WriteString(params[name])
	}
	return b.String()
}

// verifyForm returns the candidates that made the signature of V2, in any form that
// clients give it: for every host that the caller may have meant, with names rewritten or
// not and, in a POST to V2, with and without the values that begin with "@".
//
// Values are not encoded in the signed text, so one text can be cut into
// parameters in several ways. That is the API's; what it costs is bounded by the
// replay guard, and TLS.
func (c *Call) verifyForm(candidates []Candidate, hosts []string) ([]Candidate, error) {
	switch c.signatureMethod {
	case "", HmacSHA1, HmacSHA256:
	default:
		return nil, Errorf(KindSignatureFailure, "SignatureMethod", "must be %s or %s", HmacSHA1, HmacSHA256)
	}
	effort := maxEffort
	matching, err := match(c.forms(hosts, nil), candidates, &effort)
	if err == nil {
		return matching, nil
	}
	// Clients take such a value for the name of a file to be sent.
	files := c.fileParameters()
	if len(files) == 0 {
		return nil, err
	}
	if matching, err = match(c.forms(hosts, files), candidates, &effort); err != nil {
		return nil, err
	}
	// Whoever passes the call on can change or add these. Those that mean nothing
	// here do no harm.
	for _, name := range files {
		if meaningful(name) {
			return nil, Errorf(KindSignatureFailure, name, `begins with "@" and is not signed by this client: send it with GET, or with another client`)
		}
	}
	return matching, nil
}

// forms are those of the parameters without the ones left out.
func (c *Call) forms(hosts, leaveOut []string) iter.Seq[variant] {
	return func(yield func(variant) bool) {
		var texts []string
		for _, write := range []func(string) string{dots, asSent, allDots, innerDots} {
			text := signedParameters(c.params, write, leaveOut)
			// Without a "_" in a name, which is the rule, all forms are one.
			if slices.Contains(texts, text) {
				continue
			}
			texts = append(texts, text)
			for _, host := range hosts {
				signs := func(secretKey string) bool {
					return sameText(signParts(c.signatureMethod, secretKey, c.method, host, c.Version.Path(), "?", text), c.signature)
				}
				if !yield(variant{bytes: len(text) + len(host), by: signs}) {
					return
				}
			}
		}
	}
}

// fileParameters returns the parameters that clients leave out when they sign a
// POST to V2.
func (c *Call) fileParameters() []string {
	if c.Version != V2 || c.method != http.MethodPost {
		return nil
	}
	var names []string
	for name, value := range c.params {
		if strings.HasPrefix(value, "@") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// meaningful reports whether a parameter of V2 means something in any call.
func meaningful(name string) bool {
	switch name {
	case "Action", "Timestamp", "Nonce", "SecretId", "Signature", "SignatureMethod", "Token",
		"taskType", "productID", "deviceNameFilter", "tasks", "scheduleTimeInSeconds", "maxExecutionTimeInSeconds",
		"id", "pageNum", "pageSize",
		"deviceName", "state", "version", "prefix", "topic", "payload", "qos", "payloadEncoding":
		return true
	default:
		return strings.HasPrefix(dots(name), "tasks.")
	}
}
