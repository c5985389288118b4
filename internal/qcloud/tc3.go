package qcloud

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithmTC3   = "TC3-HMAC-SHA256"
	terminatorTC3  = "tc3_request"
	maxTC3Header   = 4096 // bytes of an Authorization header
	maxTC3Signed   = 32   // signed headers
	unsignedTC3    = "UNSIGNED-PAYLOAD"
	dateLayoutTC3  = time.DateOnly
	contentHashTC3 = "X-TC-Content-SHA256"
)

// authorization is what a TC3 Authorization header says.
type authorization struct {
	secretID, date, service string
	signedHeaders           []string
	signature               string // 64 hexadecimal digits
}

var (
	signaturePattern  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	headerNamePattern = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	// servicePattern takes what may stand before the first dot of an endpoint, also an
	// address with a port: the clients for Java and Node.js sign that as the service.
	servicePattern = regexp.MustCompile(`^[A-Za-z0-9._:\[\]-]{1,255}$`)
)

// parseAuthorization reads a header of the form
//
//	TC3-HMAC-SHA256 Credential=ID/2019-02-25/iotcloud/tc3_request, SignedHeaders=content-type;host, Signature=72e4…
//
// Content-Type and Host must be among the signed headers.
func parseAuthorization(header string) (*authorization, error) {
	fault := func(format string, args ...any) (*authorization, error) {
		return nil, Errorf(KindSignatureFailure, "Authorization", format, args...)
	}
	rest, ok := strings.CutPrefix(header, algorithmTC3+" ")
	if !ok || len(header) > maxTC3Header {
		return fault("must be %q with Credential, SignedHeaders and Signature", algorithmTC3)
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if _, exists := fields[name]; exists || !slices.Contains([]string{"Credential", "SignedHeaders", "Signature"}, name) {
			return fault("must have Credential, SignedHeaders and Signature, each once, and nothing else")
		}
		fields[name] = value
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(scope) != 4 || slices.Contains(scope, "") || scope[3] != terminatorTC3 {
		return fault("Credential must be SecretId/date/service/%s", terminatorTC3)
	}
	if !servicePattern.MatchString(scope[2]) {
		return fault("the service in Credential must be 1 to 255 letters, digits and any of . _ : [ ] -")
	}
	if !signaturePattern.MatchString(fields["Signature"]) {
		return fault("Signature must be 64 lower-case hexadecimal digits")
	}
	signed := strings.Split(fields["SignedHeaders"], ";")
	if len(signed) > maxTC3Signed || !slices.Contains(signed, "content-type") || !slices.Contains(signed, "host") {
		return fault("SignedHeaders must have content-type and host, and at most %d names", maxTC3Signed)
	}
	for i, name := range signed {
		if !headerNamePattern.MatchString(name) || slices.Contains(signed[:i], name) {
			return fault("SignedHeaders must be names of headers in lower case, each once")
		}
	}
	return &authorization{
		secretID: scope[0], date: scope[1], service: scope[2],
		signedHeaders: signed, signature: fields["Signature"],
	}, nil
}

// readTC3 reads a call whose common parameters are in headers, and the others in
// a JSON body or, with GET, in the query.
func (c *Call) readTC3(r *http.Request, contentType string) error {
	for _, name := range []string{"Authorization", "Content-Type", "X-TC-Action", "X-TC-Version", "X-TC-Timestamp", "X-TC-Token"} {
		if len(r.Header.Values(name)) > 1 {
			return Errorf(KindInvalidParameter, name, "is given twice")
		}
	}
	auth, err := parseAuthorization(r.Header.Get("Authorization"))
	if err != nil {
		return err
	}
	if r.Header.Get(contentHashTC3) == unsignedTC3 {
		return Errorf(KindSignatureFailure, contentHashTC3, "the body must be signed")
	}
	if c.method == http.MethodGet {
		c.params = params{}
		if err := c.params.urlencoded(r.URL.RawQuery); err != nil {
			return err
		}
	} else if contentType != "application/json" {
		return Errorf(KindUnsupportedProtocol, "Content-Type", "must be application/json with %s", algorithmTC3)
	}
	c.authorization, c.header, c.query = auth, r.Header, r.URL.RawQuery
	c.Action = r.Header.Get("X-TC-Action")
	c.SecretID = auth.secretID
	c.apiVersion = r.Header.Get("X-TC-Version")
	c.token = r.Header.Get("X-TC-Token")
	c.timestamp = parameter{"X-TC-Timestamp", r.Header.Get("X-TC-Timestamp")}
	return nil
}

// verifyTC3 returns the candidates that made the signature of a call that was sent at
// timestamp (Unix seconds), for any host that the caller may have meant. The service in the
// scope is what the client takes the server for: it is part of what is signed, so it may be
// any.
func (c *Call) verifyTC3(candidates []Candidate, hosts []string, timestamp int64) ([]Candidate, error) {
	auth := c.authorization
	// Keys are made for a day: one of another day would make the scope worthless.
	if date := time.Unix(timestamp, 0).UTC().Format(dateLayoutTC3); auth.date != date {
		return nil, Errorf(KindSignatureFailure, "Authorization", "the date in Credential must be that of %s in UTC: %s", c.timestamp.name, date)
	}
	for _, name := range auth.signedHeaders {
		if name != "host" && len(c.header.Values(name)) != 1 {
			return nil, Errorf(KindSignatureFailure, "Authorization", "the signed header %s must be there once", name)
		}
	}
	effort := maxEffort
	return match(c.formsTC3(hosts, timestamp), candidates, &effort)
}

// formsTC3 are those of a call that was sent at timestamp. The canonical request is hashed
// once for all keys, so what each key costs is a few short hashes, whatever was sent; and there
// are at most twice as many forms as hosts.
func (c *Call) formsTC3(hosts []string, timestamp int64) iter.Seq[variant] {
	return func(yield func(variant) bool) {
		auth := c.authorization
		bodyHash := sha256.Sum256(c.body)
		var tried []string
		for _, host := range hosts {
			// The documents put the values in lower case, as in "x-tc-action:createtask";
			// clients sign them as they send them.
			for _, write := range []func(string) string{strings.ToLower, func(value string) string { return value }} {
				var headers strings.Builder
				for _, name := range auth.signedHeaders {
					value := host
					if name != "host" {
						value = c.header.Get(name)
					}
					headers.WriteString(name + ":" + write(strings.TrimSpace(value)) + "\n")
				}
				if slices.Contains(tried, headers.String()) {
					continue
				}
				tried = append(tried, headers.String())
				text := auth.text(timestamp, strings.Join([]string{
					c.method, V3.Path(), c.query, headers.String(),
					strings.Join(auth.signedHeaders, ";"), hex.EncodeToString(bodyHash[:]),
				}, "\n"))
				signs := func(secretKey string) bool { return sameText(auth.signText(secretKey, text), auth.signature) }
				if !yield(variant{bytes: 4 * perHash, by: signs}) {
					return
				}
			}
		}
	}
}

// sign returns the signature of a canonical request, in hexadecimal.
func (a *authorization) sign(secretKey string, timestamp int64, canonical string) string {
	return a.signText(secretKey, a.text(timestamp, canonical))
}

// text returns what is signed of a canonical request.
func (a *authorization) text(timestamp int64, canonical string) string {
	hash := sha256.Sum256([]byte(canonical))
	return strings.Join([]string{
		algorithmTC3, strconv.FormatInt(timestamp, 10),
		a.date + "/" + a.service + "/" + terminatorTC3, hex.EncodeToString(hash[:]),
	}, "\n")
}

func (a *authorization) signText(secretKey, text string) string {
	key := []byte("TC3" + secretKey)
	for _, step := range []string{a.date, a.service, terminatorTC3, text} {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(step))
		key = mac.Sum(nil)
	}
	return hex.EncodeToString(key)
}

// AuthorizeTC3 signs a request as clients do: it sets the header Authorization,
// which covers Content-Type, Host, the query, the body and X-TC-Timestamp. These
// must be set. It fails if X-TC-Timestamp holds no Unix seconds.
func AuthorizeTC3(r *http.Request, body []byte, service, secretID, secretKey string) error {
	timestamp, err := strconv.ParseInt(r.Header.Get("X-TC-Timestamp"), 10, 64)
	if err != nil {
		return fmt.Errorf("sign a request: X-TC-Timestamp: %w", err)
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	auth := authorization{secretID: secretID, date: time.Unix(timestamp, 0).UTC().Format(dateLayoutTC3), service: service}
	bodyHash := sha256.Sum256(body)
	canonical := strings.Join([]string{
		r.Method, V3.Path(), r.URL.RawQuery,
		"content-type:" + r.Header.Get("Content-Type") + "\nhost:" + host + "\n",
		"content-type;host", hex.EncodeToString(bodyHash[:]),
	}, "\n")
	r.Header.Set("Authorization", fmt.Sprintf("%s Credential=%s/%s/%s/%s, SignedHeaders=content-type;host, Signature=%s",
		algorithmTC3, secretID, auth.date, service, terminatorTC3, auth.sign(secretKey, timestamp, canonical)))
	return nil
}
