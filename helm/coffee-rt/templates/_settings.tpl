{{/* Values as variables of the processes: camelCase keys become COFFEE_RT_ names. */}}

{{/* (root): the ConfigMap of all processes, as NAME: "value" lines. */}}
{{- define "coffee-rt.settings" -}}
{{- $settings := omit .Values.settings "redis" "database" "extra" -}}
COFFEE_RT_HTTP_HOST: "0.0.0.0"
COFFEE_RT_HTTP_PORT: "8000"
{{- include "coffee-rt.settingLines" (dict "prefix" "COFFEE_RT_" "settings" $settings) }}
{{- include "coffee-rt.settingLines" (dict "prefix" "COFFEE_RT_REDIS_" "settings" .Values.settings.redis) }}
{{- include "coffee-rt.settingLines" (dict "prefix" "COFFEE_RT_DATABASE_" "settings" .Values.settings.database) }}
{{- range $name, $value := .Values.settings.extra }}
{{ $name }}: {{ include "coffee-rt.settingText" $value | quote }}
{{- end }}
{{- end }}

{{/* (prefix, settings): camelCase keys as variables; an empty text is left to the program's default. */}}
{{- define "coffee-rt.settingLines" -}}
{{- range $key, $value := .settings }}
{{- $text := include "coffee-rt.settingText" $value }}
{{- if ne $text "" }}
{{ $.prefix }}{{ snakecase $key | upper }}: {{ $text | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Numbers of values.yaml are floats to Helm: 33554432 would be printed as 3.3554432e+07. */}}
{{- define "coffee-rt.settingText" -}}
{{- if kindIs "slice" . -}}
{{ join "," . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ int64 . }}
{{- else -}}
{{ . }}
{{- end -}}
{{- end }}

{{/* (root, component, values): the variables of one process; the shared ones come from the ConfigMap. */}}
{{- define "coffee-rt.env" -}}
{{- $drain := sub .values.terminationGracePeriodSeconds (add .values.preStopSeconds 5) | int -}}
{{- if lt $drain 5 -}}
{{- fail (printf "%s: terminationGracePeriodSeconds %v less preStopSeconds %v less 5 to spare leaves %d s to drain; it needs 5" .component .values.terminationGracePeriodSeconds .values.preStopSeconds $drain) -}}
{{- end -}}
- name: COFFEE_RT_INSTANCE
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: COFFEE_RT_GRACE_SECONDS
  value: {{ $drain | quote }}
- name: COFFEE_RT_DATABASE_POOL_SIZE_MAX
  value: {{ .values.databasePoolSizeMax | int64 | quote }}
{{- $prefix := printf "COFFEE_RT_%s_" (.component | replace "-" "_" | upper) }}
{{- range $name, $value := include "coffee-rt.settingLines" (dict "prefix" $prefix "settings" (merge (dict) .values.settings (.settings | default dict))) | fromYaml }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- include "coffee-rt.storesEnv" .root }}
{{- include "coffee-rt.authorityEnv" .root }}
{{- with .values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* (root): authorities of the stores' certificates, and our own ones, where a Secret holds them. */}}
{{- define "coffee-rt.authorityEnv" -}}
{{- range $store, $secret := dict "REDIS" .Values.tls.redisCaSecret "DATABASE" .Values.tls.databaseCaSecret }}
{{- if $secret }}
- name: COFFEE_RT_{{ $store }}_CA_FILE
  value: /etc/coffee-rt/tls/{{ lower $store }}/ca.crt
{{- end }}
{{- end }}
{{- range $store, $secret := dict "REDIS" .Values.tls.redisClientSecret "DATABASE" .Values.tls.databaseClientSecret }}
{{- if $secret }}
- name: COFFEE_RT_{{ $store }}_CERTIFICATE_FILE
  value: /etc/coffee-rt/tls/{{ lower $store }}-client/tls.crt
- name: COFFEE_RT_{{ $store }}_KEY_FILE
  value: /etc/coffee-rt/tls/{{ lower $store }}-client/tls.key
{{- end }}
{{- end }}
{{- end }}

{{- define "coffee-rt.authorityVolumes" -}}
{{- range $store, $secret := dict "redis" .Values.tls.redisCaSecret "database" .Values.tls.databaseCaSecret }}
{{- if $secret }}
- name: {{ $store }}-authority
  secret:
    secretName: {{ $secret }}
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
{{- end }}
{{- range $store, $secret := dict "redis" .Values.tls.redisClientSecret "database" .Values.tls.databaseClientSecret }}
{{- if $secret }}
- name: {{ $store }}-client
  secret:
    secretName: {{ $secret }}
    items: [{key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
{{- end }}
{{- end }}
{{- end }}

{{- define "coffee-rt.authorityMounts" -}}
{{- range $store, $secret := dict "redis" .Values.tls.redisCaSecret "database" .Values.tls.databaseCaSecret }}
{{- if $secret }}
- name: {{ $store }}-authority
  mountPath: /etc/coffee-rt/tls/{{ $store }}
  readOnly: true
{{- end }}
{{- end }}
{{- range $store, $secret := dict "redis" .Values.tls.redisClientSecret "database" .Values.tls.databaseClientSecret }}
{{- if $secret }}
- name: {{ $store }}-client
  mountPath: /etc/coffee-rt/tls/{{ $store }}-client
  readOnly: true
{{- end }}
{{- end }}
{{- end }}
