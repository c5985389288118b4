// Package qcloud holds the wire of the legacy HTTP API: how calls are signed,
// how their parameters are written, and what answers look like. It knows two
// versions of the API:
//
//   - [V2]: GET or POST /v2/index.php, parameters in the query or in a form, an
//     HMAC over the sorted parameters (HmacSHA1 or HmacSHA256);
//   - [V3], version 2018-06-14: POST / with a JSON body and the header
//     "Authorization: TC3-HMAC-SHA256 …", or parameters in the query or in a form
//     with the HMAC of V2.
//
// A server reads a call, verifies it, decodes it and writes the answer:
//
//	call, err := qcloud.Read(version, r)
//	caller, err := verifier.Verify(call)
//	request, err := call.Decode()     // *CreateTask, *UpdateDeviceShadow, …
//	qcloud.WriteResult(w, version, requestID, result)
//	qcloud.WriteError(w, version, requestID, qcloud.AsError(err).In(call.Action))
//
// Errors of this package are of type [*Error]. The package keeps no connection
// and knows nothing of what becomes of a task or a message.
package qcloud
